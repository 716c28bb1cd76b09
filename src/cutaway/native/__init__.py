"""Fast arithmetic for a processor: one small C++ source, its build, and what Python must know to call it.

`simd.h` is sixteen lanes on any processor, `kernels.cpp` the operations of a tape, `build.py` compiles them for the
machine at hand, `tape.py` mirrors their structures, `packing.py` and `packing.h` lay weights out as they read them.
"""
