"""The proof kit: loud twins of other people's models, proofs against them, and mutants that the proofs must kill."""
