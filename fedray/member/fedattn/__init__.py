"""A participant of FedAttn (arXiv 2511.02647) inside its member."""
