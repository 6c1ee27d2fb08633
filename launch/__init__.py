"""Launchers: they start runs on other machines, after checks of what a run needs."""
