"""Mathematics: published data sets, judged by the equivalence of answers."""
