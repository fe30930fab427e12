"""TensorIR kernels, their intrinsics and tilings (imported as ``tvmquant.schedules``)."""

from tvmquant.tvm_compat import speed_up_parser

speed_up_parser()
