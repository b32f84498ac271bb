"""From a recipe to a better recipe, with the help of an evaluation."""

from plait.tuning._greedy import Soup, Trial, greedy_soup

__all__ = ["Soup", "Trial", "greedy_soup"]
