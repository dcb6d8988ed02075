"""What notebooks, README and page show: pictures, diagrams, plots, figures of results, and widgets."""
