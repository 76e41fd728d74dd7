"""The page: `avgrad app` serves it with streamlit. All heatmaps and scores come from `avgrad.Localizer`."""
