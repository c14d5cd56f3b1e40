//! The figures: printed as they come, kept for the JSON file.

use std::fmt::Write;

/// All figures so far.
#[derive(Default)]
pub struct Report(Vec<(String, f64)>);

impl Report {
    /// Prints a heading.
    pub fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    /// Prints and keeps a figure of its own.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        println!("  {name:<56}{value:>10.2} {unit}");
        self.keep(name, value);
    }

    /// Keeps a figure that a table shows.
    pub fn keep(&mut self, name: &str, value: f64) {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        self.0.push((name, value));
    }

    /// The figures as an object.
    pub fn json(&self) -> String {
        let mut text = String::from("{");
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(text, "{comma} \"{name}\": {value:.3}").expect("a string takes everything");
        }
        text + " }"
    }
}
