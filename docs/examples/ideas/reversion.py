"Mean reversion: the distance of the close from its mean, in standard deviations."
import pandas as pd


def make(bars: pd.DataFrame) -> pd.DataFrame:   # one row per bar
    "Distances over a day, three days and a week; each from past bars only."
    close, distances = bars["close"], {}
    for window in (24, 72, 168):
        past = close.rolling(window, min_periods=window // 2)
        spread = past.std()
        distances[f"distance_{window}"] = (close - past.mean()) / spread.where(spread > 0)
    return pd.DataFrame(distances).fillna(0.0)


def decide(forecasts: pd.DataFrame, features: pd.DataFrame) -> pd.Series:   # −1, 0 or 1 per forecast
    "Follow a forecast that goes back to the mean of the last day."
    side = forecasts["direction"]
    far = features["distance_24"].loc[forecasts.index]
    return side.where(side * far < 0, 0)
