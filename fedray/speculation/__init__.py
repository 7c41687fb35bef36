"""SpecFed's numbers (arXiv 2604.25777): what is accepted of a draft, and what top-K entries become again."""
