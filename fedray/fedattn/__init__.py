"""FedAttn (arXiv 2511.02647), what a member does of it: hold a segment of a prompt, and stop at the layers in which
participants exchange keys and values. The loop of exchanges is protocols/fedattn.py."""
