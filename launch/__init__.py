"""Programs that start runs elsewhere, and that check what a run needs before it is paid for."""
