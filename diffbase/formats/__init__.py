"""Files of trees and lines, read with limits: YAML of people, JSON and JSON Lines of programs."""
