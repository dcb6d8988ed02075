"""What notebooks, README and page show: pictures, diagrams, plots, figures of results, and widgets."""

from ..files import need

need("notebooks", "seaborn", "umap", "ipywidgets", "anywidget")
