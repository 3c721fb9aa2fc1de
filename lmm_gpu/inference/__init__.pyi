from .f_tests import FTest, f_test
from .satterthwaite import DF_METHODS
from .t_tests import ContrastTest, contrast_se_and_df
from .tables import tidy, to_wide

__all__ = [
    "DF_METHODS",
    "ContrastTest",
    "FTest",
    "contrast_se_and_df",
    "f_test",
    "tidy",
    "to_wide",
]
