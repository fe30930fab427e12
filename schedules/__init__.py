"""TensorIR kernels, their intrinsics and tilings (imported as ``tvmquant.schedules``)."""
