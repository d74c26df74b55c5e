"""Units: kcal/mol and Å inside the package, Hartree in the files, eV at the border to ASE.

The constants are those of CODATA 2018; ASE's own ``units`` agree to 1e-8.
"""

HARTREE_TO_KCAL_MOL = 627.5094740631
"""One Hartree in kcal/mol. Hartree/Å become kcal/mol/Å by the same factor."""

EV_TO_KCAL_MOL = 23.060547830619
"""One electronvolt in kcal/mol."""

ENERGY_UNIT = "kcal/mol"
LENGTH_UNIT = "Å"
FORCE_UNIT = "kcal/mol/Å"
