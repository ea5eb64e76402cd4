"""Models trained under equal budgets: plans, runs and their report."""
