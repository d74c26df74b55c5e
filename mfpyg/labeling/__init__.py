"""Labels for geometries: levels of theory, the programs that compute them, and the files they are written to."""
