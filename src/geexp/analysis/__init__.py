"""The paper's analyses of trained networks, one file each: functions of a model and batches, tables and pictures.

An analysis of ``geexp.analyze`` is a module here with ``measure(loaded_run)``, which returns its tables by name,
``draw(analysis, path, title)`` and ``summary(analysis)`` for the terminal. Except for these, it needs torch only.
"""
