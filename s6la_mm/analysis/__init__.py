"""Looking at models and runs: logged figures, FLOPs, and what the state holds."""
