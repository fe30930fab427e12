"""tvmquant: ONNX in, one integer-only library for TVM's runtime out."""
