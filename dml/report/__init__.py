"""Finished runs -> tables and figures. Reads run folders only; imports nothing else of the project."""
