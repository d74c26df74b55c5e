"""From molecules to a potential, round by round: sample, label, train, select."""
