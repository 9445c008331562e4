"""What the operating system gives: paths, locks, signals, and the start."""
