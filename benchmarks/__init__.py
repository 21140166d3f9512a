"""Side-by-side measurements; each prints versions, machine and figures."""
