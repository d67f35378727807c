"""Stand-ins, for what a real part does not do on demand: fail, stall, lie."""
