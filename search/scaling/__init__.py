"""Scaling: from one seed to a family of networks for several budgets.

    task = ScalingTask(seed=known("swin_t"), by="num_params", budgets=(50e6,), costs=NetworkCosts())
    family = scaling_method("compound").from_options(ScalingOptions()).scale(task)

What is needed for that is in ``base`` and ``cost``; importing this package loads nothing.
"""
