"""minquant beside the installed torch: everything here imports torch, and only when called."""
