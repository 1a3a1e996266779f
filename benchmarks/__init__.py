"""Speed, measured as ratios side by side in one process; `make bench` runs it."""
