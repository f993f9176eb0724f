"""The benchmark's runs: which there are, how one is made, and where records lie."""
