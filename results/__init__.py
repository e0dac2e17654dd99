"""Results: the run's store, Pareto fronts, the report and the export."""
