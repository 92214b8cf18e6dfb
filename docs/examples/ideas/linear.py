"A pipeline of scikit-learn: principal components of the inputs, then a ridge regression."
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def build(components: int = 8, alpha: float = 100.0) -> Pipeline:
    "The arguments are settings of the run: forecaster_args."
    return make_pipeline(StandardScaler(), PCA(components, svd_solver="full"), Ridge(alpha))
