"""A stand-in for Modal's servers on this machine, so that all of this chapter can be tried without an account."""
