"""A server or worker of SpecFed (arXiv 2604.25777) inside its member."""
