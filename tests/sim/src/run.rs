//! A run: a pool on devices with an earlier life, attacked in all of its lives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::config::Config;
use crate::failure::Failure;
use crate::life::{Life, Statistics};
use crate::model::Model;
use crate::pool::{self, Pool};
use crate::random::Random;
use crate::world::{End, Watch, World};

/// By how much devices grow after a pool was made on them.
const GROWTH_BYTES: u64 = 1 << 20;

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What happened in all lives.
    pub statistics: Statistics,
    /// Steps of the first life.
    pub steps: u64,
    /// The same for two runs that did the same.
    pub trace: u64,
}

/// Runs a pool from its making to several ends. The same seed and configuration do the same.
///
/// # Errors
/// What is wrong with the pool.
pub fn run(seed: u64, config: &Config) -> Result<Summary, Failure> {
    let config = Arc::new(config.clone());
    catch_unwind(AssertUnwindSafe(|| run_lives(seed, &config))).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Failure::Panicked { message: text.unwrap_or_default() })
    })
}

fn run_lives(seed: u64, config: &Arc<Config>) -> Result<Summary, Failure> {
    let mut random = Random::of(&[seed, 3]);
    let all = [config.devices.clone(), config.spares.clone()].concat();
    let world = World::new(random.draw(), &all);
    let mut statistics = Statistics::default();
    let world = if random.one_in(2) {
        let mut earlier = begin(world, &mut random, config)?;
        earlier.run(config.operations / 8)?;
        statistics.add(&earlier.statistics);
        let image = earlier.pool.world.image(End::ProcessDeath);
        World::over(random.draw(), image)
    } else {
        world
    };
    let mut life = begin(world, &mut random, config)?;
    if !config.faults.is_empty() {
        life.run(config.operations / 4)?;
    }
    for (device, faults) in &config.faults {
        life.pool.world.fail(*device, faults.clone());
    }
    life.pool.world.watch(Watch::OneIn(config.one_in));
    life.run(config.operations)?;
    statistics.add(&life.statistics);
    let world = &life.pool.world;
    Ok(Summary { statistics, steps: world.step(), trace: world.trace() })
}

/// Makes a pool and opens it.
fn begin(world: World, random: &mut Random, config: &Arc<Config>) -> Result<Life, Failure> {
    let uuid = pool::create(&world, "sim", config)?;
    let world = match config.changes_devices && random.one_in(2) {
        true => {
            let mut image = world.image(End::ProcessDeath);
            image.grow(GROWTH_BYTES);
            World::over(random.draw(), image)
        }
        false => world,
    };
    let pool = Pool::open(world, uuid, random, config)?;
    let model = Model::new(random.draw(), config.devices[0].block_bytes);
    Ok(Life::new(pool, model, Random::new(random.draw()), config))
}
