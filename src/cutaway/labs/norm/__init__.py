"""Norms, residuals, dropout and initialization: what keeps a deep stack trainable."""
