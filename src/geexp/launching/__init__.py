"""From a sweep to trained runs: the jobs, the plan, processes and their devices, clusters. Loads no torch."""
