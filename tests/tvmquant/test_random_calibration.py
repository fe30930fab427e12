from tvmquant.frontend import load_onnx
from tvmquant.random_calibration import calibrate_with_random_items


def test_random_items_tell_which_activations_are_never_negative(small_onnx):
    calibration = calibrate_with_random_items(load_onnx(small_onnx))
    assert calibration.edges["x"].lo < 0 < calibration.edges["x"].hi
    assert calibration.edges["relu"].lo == 0
    assert calibration == calibrate_with_random_items(load_onnx(small_onnx))
