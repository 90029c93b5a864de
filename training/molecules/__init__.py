"""The recipe of the embedded model of molecules."""
