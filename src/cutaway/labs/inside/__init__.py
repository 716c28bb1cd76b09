"""Looking into trained models, and changing them."""
