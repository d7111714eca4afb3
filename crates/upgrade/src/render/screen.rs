//! Lines that fit: wrapping under a label, lengths of time as people say them, large numbers with their commas.

use super::WIDTH;
use std::time::Duration;

/// Where the text of a labelled line begins.
const LABEL: usize = 9;
const CODE: usize = 6;

/// `BLOCKED  B-07  text`, wrapped under its text.
pub(super) fn item(label: &str, code: &str, text: &str) -> String {
    let first = if code.is_empty() { format!("{label:<LABEL$}") } else { format!("{label:<LABEL$}{code:<CODE$}") };
    let hang = first.chars().count();
    let mut lines = String::new();
    for (number, line) in wrap(text, WIDTH - hang).into_iter().enumerate() {
        if number == 0 {
            lines.push_str(&first);
        } else {
            lines.push_str(&" ".repeat(hang));
        }
        lines.push_str(&line);
        lines.push('\n');
    }
    lines
}

/// Breaks at spaces; a word that is longer than a line stands alone, cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        let word = fit(word, width);
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

/// At most so many characters.
pub(super) fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// At most a line.
pub(super) fn cut(text: &str) -> String {
    fit(text, WIDTH)
}

/// `45 s`, `9 min`, `2 h 10 min`, `7 d`.
pub(super) fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) if minutes % 60 > 0 && hours < 10 => format!("{hours} h {} min", minutes % 60),
        (0 | 1, hours, _) => format!("{hours} h"),
        (days, ..) => format!("{days} d"),
    }
}

/// `9,412`
pub(super) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let (mut text, count) = (String::new(), digits.len());
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (count - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_numbers_read_as_people_say_them() {
        let check = |seconds, expected| assert_eq!(length(Duration::from_secs(seconds)), expected);
        check(45, "45 s");
        check(540, "9 min");
        check(7800, "2 h 10 min");
        check(5 * 3600, "5 h");
        check(36 * 3600, "36 h");
        check(7 * 86_400, "7 d");
        assert_eq!((thousands(9412), thousands(412), thousands(1_200_000)), ("9,412".into(), "412".into(), "1,200,000".into()));
    }

    #[test]
    fn no_line_is_wider_than_the_screen_whatever_is_in_it() {
        let long = format!("{} {} äöü", "word ".repeat(60), "x".repeat(300));
        for line in item("BLOCKED", "B-07", &long).lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
