"""What models cost before anybody runs them: parameters, FLOPs, bytes and batch sizes, each with its formula.

Every calculator is a pure function that returns `Term`s: a name, a value, the formula in symbols and with numbers.
"""
