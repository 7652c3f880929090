//! Mutations of a corpus, the same for the same seed.

use fastrand::Rng;

/// Inputs don't grow beyond that.
const LONGEST: usize = 1 << 14;

/// Makes inputs.
pub(crate) struct Mutator {
    rng: Rng,
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// `words` is a dictionary of libFuzzer: a string in quotes on each line.
    pub(crate) fn new(seed: u64, corpus: Vec<Vec<u8>>, words: &str) -> Mutator {
        let quoted = words.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
        Mutator { rng: Rng::with_seed(seed), corpus, words: quoted.map(unescape).collect() }
    }

    /// The next input: one of the corpus after a few changes.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.corpus[self.rng.usize(..self.corpus.len())].clone();
        for _ in 0..1 << self.rng.u32(..4) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.usize(..=input.len());
        match self.rng.u8(..9) {
            0 if at < input.len() => input[at] ^= 1 << self.rng.u32(..8),
            1 if at < input.len() => input[at] = self.rng.u8(..),
            2 if at < input.len() => {
                let odd = b"\0\r\n\t :;,/\"'{}[]-#%\x7f\x80\xff09aZ";
                input[at] = odd[self.rng.usize(..odd.len())];
            }
            3 => {
                let end = at + self.rng.usize(..=(input.len() - at).min(16));
                input.drain(at..end);
            }
            4 => {
                let end = at + self.rng.usize(..=(input.len() - at).min(64));
                let piece = input[at..end].to_vec();
                let to = self.rng.usize(..=input.len());
                input.splice(to..to, piece);
            }
            5 | 6 if !self.words.is_empty() => {
                let word = self.words[self.rng.usize(..self.words.len())].clone();
                let replaced = if self.rng.bool() { word.len().min(input.len() - at) } else { 0 };
                input.splice(at..at + replaced, word);
            }
            7 => {
                let other = &self.corpus[self.rng.usize(..self.corpus.len())];
                let from = self.rng.usize(..=other.len());
                let end = from + self.rng.usize(..=other.len() - from);
                input.splice(at..at, other[from..end].iter().copied());
            }
            8 => input.truncate(at),
            _ => input.insert(at, self.rng.u8(..)),
        }
    }
}

/// `\\`, `\"` and `\xAB`.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        (rest, bytes) = match (first, behind) {
            (b'\\', [b'x', high, low, behind @ ..]) => {
                let digits = [*high, *low];
                let byte = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(byte.unwrap());
                (behind, bytes)
            }
            (b'\\', [escaped, behind @ ..]) => {
                bytes.push(*escaped);
                (behind, bytes)
            }
            (byte, behind) => {
                bytes.push(*byte);
                (behind, bytes)
            }
        };
    }
    bytes
}
