"""Tools that try the job as its users run it: a faulty proxy, a runner, a kill soak and a fault matrix."""
