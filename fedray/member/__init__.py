"""Inside a member: what one LLM reads, sends, receives and decodes, and the sessions it holds. Nothing of Ray."""
