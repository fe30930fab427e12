"""Relax to Relax rewrites, one per file (imported as ``tvmquant.passes``).

`tvmquant.passes.pipeline` orders them.
"""

from tvm_ffi import register_error

from tvmquant import errors

# A pass runs behind TVM's C interface, which keeps the type of an exception only if it knows it.
for _error in (errors.TVMQuantError, *errors.TVMQuantError.__subclasses__()):
    register_error(_error)
register_error(errors.UnsupportedModelError)
