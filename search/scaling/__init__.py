"""Scaling: from one seed to a family of networks for several budgets.

    task = ScalingTask(seed=known("swin_t"), by="num_params", budgets=(50e6,), costs=NetworkCosts())
    family = scaling_method("compound").from_options(ScalingOptions()).scale(task)

These names are in ``base`` and ``cost``; importing this package loads nothing.
"""
