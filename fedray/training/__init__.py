"""Training of fusers and gates; LLMs stay frozen."""
