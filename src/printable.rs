//! Prepares text from files for a terminal or a log.

use std::fmt::{self, Display, Write};

/// The longest text shown, in characters. An escape counts with all its characters.
const LONGEST: usize = 256;

/// The text with control, format and bidirectional characters and separators of lines and paragraphs escaped, as
/// [`char::escape_debug`] does. It is cut at 256 characters with `…`. Quotes and backslashes stay, so that escaped text
/// is not escaped again.
pub fn printable(text: &str) -> impl Display {
    Printable(text)
}

/// The same for a path.
#[cfg(not(target_arch = "wasm32"))]
pub fn printable_path(path: &std::path::Path) -> impl Display {
    Printable(path.to_string_lossy())
}

/// `true` if the text is shown as it is.
pub(crate) fn is_printable(text: &str) -> bool {
    text.chars().all(is_shown)
}

fn is_shown(character: char) -> bool {
    // Accents and vowel signs are characters of their own in many scripts. Behind a letter they count as a part of it.
    let mut buffer = [b'a', 0, 0, 0, 0];
    let length = character.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..=length]).unwrap_or_default();
    matches!(character, '\'' | '"' | '\\') || text.escape_debug().eq(text.chars())
}

struct Printable<T>(T);

impl<T: AsRef<str>> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut length = 0;
        for character in self.0.as_ref().chars() {
            let as_it_is = is_shown(character);
            length += if as_it_is { 1 } else { character.escape_debug().len() };
            if length > LONGEST {
                return f.write_char('…');
            }
            match as_it_is {
                true => f.write_char(character)?,
                false => Display::fmt(&character.escape_debug(), f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        let hostile =
            "\u{1b}[2J\r\n\t\u{7}\0\u{7f}\u{9b}31m\u{85}\u{ad}\u{200b}\u{200e}\u{202e}\u{2028}\u{2029}\u{2066}\u{feff}";
        let shown = printable(hostile).to_string();
        assert!(shown.starts_with("\\u{1b}[2J\\r\\n\\t\\u{7}\\0\\u{7f}\\u{9b}31m"), "{shown}");
        assert!(shown.chars().all(|character| (' '..='~').contains(&character)), "{shown:?}");
        assert_eq!(printable(&shown).to_string(), shown, "once is enough");
        for harmless in ["", "my \"label\"", "it's", r"C:\wa.db", "Schlüssel", "Schlu\u{308}ssel", "鍵", "कुंजी"]
        {
            assert_eq!(printable(harmless).to_string(), harmless);
            assert!(super::is_printable(harmless));
        }
    }

    #[test]
    fn long_text_is_cut_between_escapes() {
        let exact = "x".repeat(256);
        assert_eq!(printable(&exact).to_string(), exact);
        assert_eq!(printable(&"x".repeat(257)).to_string(), exact + "…");
        // Each escape has six characters.
        let shown = printable(&"\u{1b}".repeat(1000)).to_string();
        assert_eq!(shown, "\\u{1b}".repeat(42) + "…");
    }

    #[cfg(unix)]
    #[test]
    fn paths_of_errors_are_printable() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(b"a\x1b[31m\xff.db"));
        let shown = super::printable_path(path).to_string();
        assert_eq!(shown, "a\\u{1b}[31m\u{fffd}.db");
        #[cfg(feature = "import")]
        {
            let (path, migration) = (path.to_owned(), "\u{1b}[2J".to_owned());
            let error = crate::Error::UpstreamTooNew { path, migration }.to_string();
            assert!(
                error.contains("a\\u{1b}[31m") && error.contains("\\u{1b}[2J") && !error.contains('\u{1b}'),
                "{error}"
            );
        }
    }
}
