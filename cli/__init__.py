"""The commands, each in a thin module."""

COMMANDS = {
    "mfpyg-train": ("train", "train one network on several levels of theory"),
    "mfpyg-evaluate": ("evaluate", "print and plot the errors of a trained potential"),
    "mfpyg-predict": ("predict", "predict energies, forces and other properties of the frames of a file"),
    "mfpyg-study": ("study", "train and compare ensembles of models, with tables, figures and a report"),
    "mfpyg-doctor": ("doctor", "check data for errors that ruin training"),
    "mfpyg-preprocess": ("preprocess", "process data once, so that training opens them quickly"),
    "mfpyg-inspect": ("inspection", "show the contents of a checkpoint, a run, a study or a data set"),
    "mfpyg-sample": ("sample", "make geometries to be labelled, from SMILES or structures"),
    "mfpyg-label": ("label", "compute labels of geometries at several levels of theory"),
    "mfpyg-select": ("selection", "choose the geometries to label next, and at which levels"),
    "mfpyg-grow": ("grow", "sample, label, train and select, round by round, within a budget"),
    "mfpyg-convert": ("convert", "convert a trained hippynn model to a checkpoint"),
}
"""Modules of the commands, and what the commands do."""

FURTHER = {
    "completion": "print the completion of all commands for a shell: mfpyg completion bash (or zsh)",
    "schema": "print the JSON schema of the settings of mfpyg-train, for editors of YAML files",
}
"""Commands of ``mfpyg`` itself, by its first argument."""

SHELLS = ("bash", "zsh")
"""Shells with completion."""
