"""minquant beside the installed torch: whatever needs torch here imports it when it is called."""
