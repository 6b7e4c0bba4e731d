//! Stretches a passphrase with Argon2id (RFC 9106), within bounds and away from async threads.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::secret::{Key, Passphrase};

/// The cost of one guess at a passphrase: Argon2id memory, passes and lanes.
///
/// Lanes are computed one after the other. For the same memory and passes they change the result, not the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Argon2Cost {
    /// 64 MiB, 3 passes, 4 lanes: the second recommended option of RFC 9106 §4, and the default here. Takes about 0.12
    /// s.
    pub const DEFAULT: Self = Self::unchecked(64 * 1024, 3, 4);
    /// 256 MiB, 3 passes, 4 lanes. Takes about 0.65 s.
    pub const STRONG: Self = Self::unchecked(256 * 1024, 3, 4);
    /// 19 MiB, 2 passes, 1 lane: the least that OWASP's password storage cheat sheet recommends, and the least cost of
    /// a new slot. Takes about 0.02 s.
    pub const MINIMUM: Self = Self::unchecked(19 * 1024, 2, 1);

    /// Returns a cost of `memory_kib` KiB, `passes` passes and `lanes` lanes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it is below [`Argon2Cost::MINIMUM`] (46 MiB with one pass counts as equal, as in the
    /// OWASP list) or if Argon2 does not define it. [`KdfLimits`] sets the upper bound when the cost is used.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self> {
        let cost = Self { memory_kib, passes, lanes };
        let enough = (memory_kib >= Self::MINIMUM.memory_kib && passes >= Self::MINIMUM.passes)
            || (memory_kib >= 46 * 1024 && passes >= 1);
        if !enough {
            return Err(Error::InvalidInput { what: "Argon2 cost", problem: "is below 19 MiB with 2 passes" });
        }
        match cost.params() {
            Some(_) => Ok(cost),
            None => {
                Err(Error::InvalidInput { what: "Argon2 cost", problem: "needs 1 lane or more, and 8 KiB per lane" })
            }
        }
    }

    pub(crate) const fn unchecked(memory_kib: u32, passes: u32, lanes: u32) -> Self {
        Self { memory_kib, passes, lanes }
    }

    /// Memory, in KiB.
    pub const fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// Number of passes over the memory.
    pub const fn passes(&self) -> u32 {
        self.passes
    }

    /// Degree of parallelism.
    pub const fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Memory times passes, in KiB: the cost of a guess.
    pub(crate) fn work(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }

    fn params(&self) -> Option<Params> {
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }

    pub(crate) fn out_of_bounds(&self) -> Error {
        Error::KdfOutOfBounds { memory_kib: self.memory_kib, passes: self.passes, lanes: self.lanes }
    }
}

impl Default for Argon2Cost {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The most work that a header may ask for before its secret is known to fit. An attacker who can write the header
/// chooses these numbers, so they are checked before anything is allocated.
///
/// ```
/// use wastore::VaultOptions;
/// use wastore::vault::KdfLimits;
///
/// let options = VaultOptions::new().kdf_limits(KdfLimits::default().memory_kib(1 << 20));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfLimits {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    work_kib: u64,
}

impl Default for KdfLimits {
    fn default() -> Self {
        Self { memory_kib: 256 << 10, passes: 16, lanes: 16, work_kib: 4 << 20 }
    }
}

impl KdfLimits {
    /// Memory of one derivation, in KiB. Default: 256 MiB, or four times the memory of [`VaultOptions::kdf_cost`] if
    /// that is more.
    ///
    /// [`VaultOptions::kdf_cost`]: crate::VaultOptions::kdf_cost
    pub const fn memory_kib(self, memory_kib: u32) -> Self {
        Self { memory_kib, ..self }
    }

    /// Passes of one derivation. Default: 16.
    pub const fn passes(self, passes: u32) -> Self {
        Self { passes, ..self }
    }

    /// Lanes of one derivation. Default: 16.
    pub const fn lanes(self, lanes: u32) -> Self {
        Self { lanes, ..self }
    }

    /// Memory times passes of one derivation, in KiB. All slots of a header together may ask for twice as much.
    /// Default: 4 GiB.
    pub const fn work_kib(self, work_kib: u64) -> Self {
        Self { work_kib, ..self }
    }

    /// The default limits of a bot that asks for this cost itself. Many bots run with 512 MB of memory, so an altered
    /// header must not ask for much more.
    pub(crate) fn of_cost(cost: Argon2Cost) -> Self {
        let limits = Self::default();
        Self { memory_kib: limits.memory_kib.max(cost.memory_kib.saturating_mul(4)), ..limits }
    }

    /// Checks the costs of all slots that would be tried.
    ///
    /// # Errors
    /// [`Error::KdfOutOfBounds`] with the first cost that is too high.
    pub(crate) fn check(&self, costs: impl Iterator<Item = Argon2Cost>) -> Result<()> {
        let mut total = 0u64;
        for cost in costs {
            total = total.saturating_add(cost.work());
            let within = cost.memory_kib <= self.memory_kib
                && (1..=self.passes).contains(&cost.passes)
                && (1..=self.lanes).contains(&cost.lanes)
                && cost.work() <= self.work_kib
                && total <= self.work_kib.saturating_mul(2)
                && cost.params().is_some();
            if !within {
                return Err(cost.out_of_bounds());
            }
        }
        Ok(())
    }
}

/// One derivation: the salt of a slot and its cost.
pub(crate) struct Job {
    pub(crate) salt: [u8; 32],
    pub(crate) cost: Argon2Cost,
}

/// Derives the key of each job in turn, on a thread of its own, until `accept` takes one. Then does the same for the
/// next reading of the passphrase, `readings` at most. Returns the passphrase too. The caller has checked the costs. On
/// wasm32, which has no threads, it runs in place.
///
/// # Errors
/// [`Error::KdfFailed`] if there is not enough memory.
pub(crate) async fn derive_until<T: Send + 'static>(
    passphrase: Passphrase,
    readings: usize,
    jobs: Vec<Job>,
    mut accept: impl FnMut(usize, &Key) -> Option<T> + Send + 'static,
) -> Result<(Passphrase, Option<T>)> {
    let memory_kib = jobs.iter().map(|job| job.cost.memory_kib).max().unwrap_or_default();
    let derive = move || {
        let mut accepted = None;
        'found: for reading in passphrase.readings().take(readings) {
            for (position, job) in jobs.iter().enumerate() {
                accepted = accept(position, &argon2id(reading, job)?);
                if accepted.is_some() {
                    break 'found;
                }
            }
        }
        Ok((passphrase, accepted))
    };
    #[cfg(target_arch = "wasm32")]
    {
        let _ = memory_kib;
        derive()
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        let (sender, receiver) = futures_channel::oneshot::channel();
        std::thread::Builder::new()
            .name("wastore-kdf".to_owned())
            .spawn(move || drop(sender.send(derive())))
            .map_err(|_| Error::KdfFailed { memory_kib })?;
        // The sender is dropped without a result only if the derivation panicked.
        receiver.await.map_err(|_| Error::KdfFailed { memory_kib })?
    }
}

fn argon2id(passphrase: &[u8], job: &Job) -> Result<Key> {
    let failed = || Error::KdfFailed { memory_kib: job.cost.memory_kib };
    let params = job.cost.params().ok_or_else(|| job.cost.out_of_bounds())?;
    // The crate does not wipe memory that it allocates itself, so it gets ours.
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(params.block_count()).map_err(|_| failed())?;
    memory.resize(params.block_count(), Block::new());
    let mut key = Key::zeroed();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(passphrase, &job.salt, key.bytes_mut(), &mut memory[..])
        .map_err(|_| failed())?;
    Ok(key)
}
